"""Backbones, pyramid, heads and the detector; they need the extra ``train``: ``pip install "gflv2[train]"``."""
