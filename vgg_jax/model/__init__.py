"""The network: backbone, heads, classifier, freezing."""
