"""One trial: a validated spec becomes a trained, sampled and scored diffusion model. Knows nothing
of sweeps.
"""
