"""Smaller and faster models without retraining: what runs the model for `minibert.weights`.

`minibert.weights` holds the methods (quantize, calibrate, prune, distil), which work on statistics
alone. The modules here load a model, record those statistics, call the methods, and measure what
was gained and what it cost, on other texts than those that calibrated.
"""
