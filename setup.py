"""Metadata from settings.ini, and nothing else."""

from configparser import ConfigParser

from setuptools import find_packages, setup

cfg = ConfigParser(interpolation=None, delimiters=["="])
cfg.read("settings.ini", encoding="utf-8")
base = cfg.defaults()
lib = base["lib_name"]


def own(section: str) -> dict[str, str]:
    "The keys of `section` itself, without those of [DEFAULT]."
    return {key: cfg[section][key] for key in cfg[section] if key not in base}


setup(
    name=base["name"],
    version=base["version"],
    description=base["description"],
    author=base["author"],
    keywords=base["keywords"].split(),
    packages=find_packages(include=[lib, f"{lib}.*"]),
    package_data={lib: ["py.typed"], f"{lib}.video": ["*.npz"]},
    install_requires=base["requirements"].split(),
    extras_require={name: text.split() for name, text in own("extras").items()},
    entry_points={
        "console_scripts": [f"{name} = {target}" for name, target in own("scripts").items()],
        "nbdev": [f"{lib} = {lib}._modidx:d"],
    },
)
