"""System 2 distillation: questions asked slowly, consistent answers kept, and what was learnt from them."""
