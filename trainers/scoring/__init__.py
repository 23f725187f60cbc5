"""How samples are judged: detectors, the features they give, and the scores made from those."""
