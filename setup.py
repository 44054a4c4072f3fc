from setuptools import find_packages, setup

# configs/ stands at the top of the repository, where people look for it, and becomes a folder of the package.
setup(packages=[*find_packages(include=["spt_d2", "spt_d2.*"]), "spt_d2.configs"])
