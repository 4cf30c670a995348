"""The diffusion core: noise schedules, parametrisations, samplers, guidance, likelihood.

Everywhere x = x0 + sigma * eps (variance-exploding scaling) and a denoiser is a function
denoise(x, sigma) -> E[x0 | x] with x (B, C, *S) and sigma (B,).
"""
