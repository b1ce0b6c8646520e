"""Values: number schemes, the kernels behind them, and which tensor gets which."""
