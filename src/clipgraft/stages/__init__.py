"""One function a stage: the only wiring of data, models, training, generation and reporting.

Settings objects stop here; what lies below takes plain arguments.
"""
