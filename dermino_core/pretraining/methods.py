"""The method that a configuration names."""

from __future__ import annotations

from timm.models import VisionTransformer

from dermino_core.backbone_card import Preprocessing
from dermino_core.pretraining.baselines import make_baseline
from dermino_core.pretraining.config import PretrainConfig
from dermino_core.pretraining.hybrid import Hybrid
from dermino_core.pretraining.method import Method
from dermino_core.pretraining.prototypes import DiseasePrototypes, load_embeddings
from dermino_core.pretraining.randomness import derived_seed
from dermino_core.pretraining.vocabulary import Vocabulary


def make_method(
    config: PretrainConfig,
    vit: VisionTransformer,
    preprocessing: Preprocessing,
    vocabulary: Vocabulary,
    *,
    device: str,
) -> Method:
    """DermINO's method, or a baseline.

    Raises
    ------
    DerminoError
        CONFIG_INVALID if prototypes do not fit, DEPENDENCY_MISSING if a baseline's package is not
        installed.
    """
    if config.method != "hybrid":
        return make_baseline(config, vit, preprocessing, device=device)
    prototypes = None
    if vocabulary.names:
        file = config.prototypes.embeddings
        prototypes = DiseasePrototypes(
            len(vocabulary.names),
            vit.num_features,
            form=config.loss.supervised_form,
            embeddings=None if file is None else load_embeddings(file, vocabulary.names),
            trainable=config.prototypes.trainable,
            seed=derived_seed(config.run.seed, "prototypes"),
        )
    return Hybrid(config, vit, preprocessing, prototypes, device=device)
