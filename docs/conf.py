"""The site: `make docs` builds it from docs/*.md, the tutorial and the docstrings. A warning is an error."""
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

import mlic_jax  # noqa: E402

project, author, copyright = "mlic_jax", "The mlic_jax authors", "The mlic_jax authors"
version = release = mlic_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon", "sphinx_copybutton",
              "docstrings", "pages"]
exclude_patterns = ["results"]
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"  # tests/test_tutorial.py runs the tutorial
suppress_warnings = ["config.cache"]

autosummary_generate = ["api.md"]
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True  # or a function is printed by its address
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_mock_imports = ["tensorflow", "tensorflow_compression_ops"]  # which have no release for every Python
python_maximum_signature_line_length = 88
napoleon_numpy_docstring, napoleon_use_ivar = False, True
templates_path = ["_templates"]

html_theme = "sphinx_book_theme"
html_title = f"mlic_jax {version}"
html_theme_options = {"show_navbar_depth": 1, "show_toc_level": 2, "use_download_button": False,
                      "use_fullscreen_button": False, "navbar_persistent": []}
html_static_path, html_css_files = ["_static"], ["site.css"]
