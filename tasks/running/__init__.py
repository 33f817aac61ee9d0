"""Machinery that finds, computes, supervises and plans any stage."""
