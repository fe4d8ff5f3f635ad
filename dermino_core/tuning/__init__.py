"""Fine-tuning of a backbone's last blocks, by low-rank adapters or by the blocks themselves.

`adapters` says which arrays that takes and puts them into a network, `views` draws training views,
`activations` keeps what the frozen blocks make of them, `training` is the loop, `backbone` writes
the tuned backbone as a folder like any other.
"""
