"""From a sweep YAML to its distinct trials; whatever is wrong is told with its line."""
