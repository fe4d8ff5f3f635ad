"""The losses of hybrid pretraining, one per file, each citing its equation.

DermINO, section 4.1: image level (1)-(3), patch level (4), supervised prototypes (5)-(6), KoLeo,
and the normalisation of the teacher's scores. Where the paper and DINOv2's code differ, both
readings are a named argument. Everything is computed in float32, also under bfloat16 autocast; with
a process group the mean of the ranks' losses is that of the whole batch (KoLeo stays per rank).
"""
