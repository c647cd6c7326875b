"""The science of cells."""
