"""From the folders of a model repository to the models that are served: cards, trials, changes,
refusals.
"""
