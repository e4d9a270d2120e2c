"""Engines that route by this library; each module needs its engine and nothing else does."""
