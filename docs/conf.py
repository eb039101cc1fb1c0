"""Sphinx: `make docs` runs the notebook and builds the pages into build/docs."""

project = "sup-tickets"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
exclude_patterns = ["**/*.csv"]
suppress_warnings = ["myst.xref_missing"]  # paths of the repository; tests follow them
autodoc_typehints = "none"
napoleon_google_docstring = True
html_theme = "alabaster"
html_theme_options = {"description": "Sparse training in JAX", "page_width": "1100px"}
