"""
The engines: one folder each, and the folder's name is the engine's name.

An engine's ``__init__`` holds a docstring and ``ENGINE``, its :class:`engines.contract.EngineEntry`. Adding an engine
edits nothing else but the config file. Engines meet only in cells and never import each other; beside them stand
``contract`` (what an engine is), ``raw`` (what the engines that read sources share) and ``feeds`` (files, REST and
websockets to arrays).
"""
