"""The mathematics: divergences, policy gradient, and MiniLLM's loss on rollouts (docs/method.md)."""
