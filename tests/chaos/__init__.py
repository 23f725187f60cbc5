"""Sweeps under blows: kills drivers, trials, Ray and MLflow at random moments, submits again, and
checks the ledger.
"""
