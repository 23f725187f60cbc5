"""Image sources: those that come along, the user’s own images, and their preparation for
training.
"""
