"""Guided decoding: which tokens a grammar leaves at each place. Decides; imports no torch.

Grammars are strangers' programs: one may take minutes to compile, or seconds for a token. So everything that runs them
(`worker.py`, by xgrammar) runs in processes of their own, which are killed when they take too long; no step waits for them.
"""
