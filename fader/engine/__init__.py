"""How tokens are made. Knows backbones, prefixes, weight mixtures and programs; knows nothing about
preferences."""
