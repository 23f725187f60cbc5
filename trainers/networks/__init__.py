"""Networks that denoise: one file each, with its citation; `options` holds what can be set, and
imports no torch.
"""
