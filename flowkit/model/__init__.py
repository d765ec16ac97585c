"""The diffusion transformer: layers, rotary positions, condition adapter. Imports torch only."""
