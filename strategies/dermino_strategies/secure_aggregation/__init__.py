"""Secure aggregation: the coordinator learns the sum of what the sites send, and nothing else.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS,
the protocol of its Figure 4 for an active adversary: signed keys and a consistency check. Free of
transport: :mod:`site` and :mod:`coordinator` take and give the messages of :mod:`messages`.
"""
