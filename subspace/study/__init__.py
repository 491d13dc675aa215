"""The application on top: comparing methods on real data. Needs `pip install "torch-subspace[study]"`.

Uses public names of `subspace` only, and nothing of `subspace` imports it.
"""
