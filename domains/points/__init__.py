"""Points: conformers and other point clouds in three dimensions."""
