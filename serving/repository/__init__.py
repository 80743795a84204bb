"""From the folders of a model repository to served models: cards, trials, changes, refusals."""
