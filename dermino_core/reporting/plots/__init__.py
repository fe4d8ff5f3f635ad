"""Plots as inline SVG: matplotlib draws them, the page's style sheet colours them."""
