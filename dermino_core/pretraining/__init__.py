"""Hybrid pretraining of the backbone: DermINO, section 4.1.

A student and its moving-average teacher on a timm ViT, self-distillation at image and patch level,
KoLeo, and supervision by disease prototypes. :mod:`dermino_core.pretraining.loop` is the place to
start reading.
"""
