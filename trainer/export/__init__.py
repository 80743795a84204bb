"""From a trained model to a version in the model repository: graph, card, check."""
