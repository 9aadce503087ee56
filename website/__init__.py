"""The documentation site: ``make docs`` builds it from docs/, and from what the library registers, into build/site.

Pages of recipes, methods, detectors and the interface are made as the site is built (``registered``, ``api``),
notebooks are run (``notebooks``), links to files of the repository lead to pages (``links``); ``hooks`` ties that to
MkDocs.
"""
