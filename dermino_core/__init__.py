"""The science of dermino: backbone, features, heads, metrics and reports. Knows no Flower."""

__version__ = "0.1.0"
