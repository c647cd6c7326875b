"""The science of galaxies."""
