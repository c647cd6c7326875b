"""Molecules: SMILES strings, their properties, scaffolds and generated samples."""
