"""Figures: static ones by Matplotlib, interactive ones by plotly."""
