"""Census-Income (KDD): the table on which the papers on MMoE and PLE compare models, read from the official files.

Taught in notebook 07. Two tasks: does a person earn more than 50,000 dollars, and has the person never married? Both
labels leave the features. The data are by Lane and Kohavi, UCI Machine Learning Repository,
https://doi.org/10.24432/C5N30T (CC BY 4.0); this package holds none of the rows.

The publisher has two files without a header, ``census-income.data`` (199,523 rows) and ``census-income.test`` (99,762).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd

from mtl_helpers.data.download import Source, is_url
from mtl_helpers.data.tables import Task

__all__ = [
    "CENSUS_CATEGORICAL",
    "CENSUS_NUMERIC",
    "CENSUS_TASKS",
    "BadCensusFile",
    "CensusUnavailable",
    "census_available",
    "load_census",
    "split_census",
]

CENSUS_TASKS = (Task("income"), Task("never_married"))
"""Income above 50,000 dollars (6 % of the rows), never married (43 %)."""

CENSUS_NUMERIC = (
    "age",
    "wage_per_hour",
    "capital_gains",
    "capital_losses",
    "dividends_from_stocks",
    "num_persons_worked_for_employer",
    "weeks_worked_in_year",
)
_DOLLARS = ("wage_per_hour", "capital_gains", "capital_losses", "dividends_from_stocks")

# as the publisher's census-income.names lists them
_COLUMNS = (
    "age class_of_worker detailed_industry_recode detailed_occupation_recode education wage_per_hour "
    "enroll_in_edu_inst_last_wk marital_stat major_industry_code major_occupation_code race hispanic_origin sex "
    "member_of_a_labor_union reason_for_unemployment full_or_part_time_employment_stat capital_gains capital_losses "
    "dividends_from_stocks tax_filer_stat region_of_previous_residence state_of_previous_residence "
    "detailed_household_and_family_stat detailed_household_summary_in_household instance_weight "
    "migration_code_change_in_msa migration_code_change_in_reg migration_code_move_within_reg "
    "live_in_this_house_1_year_ago migration_prev_res_in_sunbelt num_persons_worked_for_employer "
    "family_members_under_18 country_of_birth_father country_of_birth_mother country_of_birth_self citizenship "
    "own_business_or_self_employed fill_inc_questionnaire_for_veterans_admin veterans_benefits weeks_worked_in_year "
    "year income"
).split()
_NO_FEATURE = ("marital_stat", "income", "instance_weight")  # two labels, and a weight of the survey

CENSUS_CATEGORICAL = tuple(
    name for name in _COLUMNS if name not in CENSUS_NUMERIC and name not in _NO_FEATURE
)

_ADDRESS = "https://archive.ics.uci.edu/ml/machine-learning-databases/census-income-mld/"
_ROWS = {"data": 199_523, "test": 99_762}
_MD5 = {"data": None, "test": "a8c39dce642efb4d17f28ebe74a3c271"}  # of the file as published in 1997
_INCOMES = {"- 50000.": 0, "50000+.": 1}


class CensusUnavailable(FileNotFoundError):
    """The files are not here and could not be fetched. The message names the ways to get them."""


class BadCensusFile(ValueError):
    """A file is damaged, or not laid out as the publisher's. The message says where."""


def load_census(
    path: str | os.PathLike | None = None, cache: str | os.PathLike | None = None, progress: bool = True
) -> pd.DataFrame:
    """Read Census-Income: one row a person.

    Parameters
    ----------
    path : one official file, ``census-income.data`` or ``.test``, as it is or as ``.gz``; or a folder that holds one or
        both. ``None`` takes the path in the environment variable ``MTL_CENSUS``, else downloads both files into the
        cache folder. The test file's md5 is known and checked; of the other, for which none is known, the number of
        rows is.
    cache : folder for the download; default ``MTL_CACHE``, else ``mtl_helpers`` in the platform's cache folder.
    progress : show a bar while downloading.

    Returns
    -------
    DataFrame with the labels ``income`` and ``never_married`` (0 or 1), the features :data:`CENSUS_NUMERIC` (amounts
    of money as ``log(1 + dollars)``) and :data:`CENSUS_CATEGORICAL` (missing values NaN), and ``file``, ``"data"`` or
    ``"test"``, which is no feature. ``marital_stat``, from which a label is made, is dropped, and so is
    ``instance_weight``, which the publisher says no classifier may use.

    Raises
    ------
    CensusUnavailable : no file there, and none could be downloaded.
    BadCensusFile : a file is damaged or is another.
    """
    files = _given(path)
    downloaded = not files
    if downloaded:
        for part in _ROWS:
            source = _source(part)
            files[part], _ = source.locate(source.url, cache, progress, "auto")
    tables = []
    for part, file in files.items():
        table = _read(file)
        if downloaded and len(table) != _ROWS[part]:
            raise BadCensusFile(
                f"{file} has {len(table):,} rows, expected {_ROWS[part]:,}. Delete it and download it again."
            )
        tables.append(table.assign(file=part))
    # codes seen in one file only make the two categorical types differ, so they are joined as text
    frame = pd.concat(
        [table.astype(dict.fromkeys(CENSUS_CATEGORICAL, object)) for table in tables], ignore_index=True
    )
    return frame.astype(dict.fromkeys(CENSUS_CATEGORICAL, "category"))


def census_available(cache: str | os.PathLike | None = None) -> list[Path]:
    """The files that ``load_census()`` would read without touching the network; empty if there are none."""
    try:
        files = _given(None)
    except CensusUnavailable:
        return []
    if files:
        return list(files.values())
    paths = [_source(part).cached(None, cache) for part in _ROWS]
    return paths if all(path.is_file() for path in paths) else []


def split_census(frame: pd.DataFrame, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Split into ``{"train", "valid", "test"}``, at random.

    With both files, train is the publisher's ``.data`` and the ``.test`` file is halved, as in Ma et al. (KDD 2018,
    section 6.2). With one file its rows are cut 70, 15, 15. Many persons share all their answers, so a row of one part
    may look like a row of another: they are different persons.
    """
    if len(frame) < 10:
        raise ValueError(f"split_census got {len(frame)} rows: expected the census, or a larger part of it.")
    order = np.random.default_rng(seed).permutation(len(frame))
    whole = set(frame["file"]) == {"data", "test"}
    if whole:
        is_test = (frame["file"] == "test").to_numpy()
        train, rest = np.flatnonzero(~is_test), order[is_test[order]]
        cut = len(rest) // 2
        rows = {"train": train, "valid": rest[:cut], "test": rest[cut:]}
    else:
        first, second = int(0.7 * len(order)), int(0.85 * len(order))
        rows = {"train": order[:first], "valid": order[first:second], "test": order[second:]}
    return {part: frame.iloc[index] for part, index in rows.items()}


def _source(part: str) -> Source:
    return Source(
        title=f"Census-Income, census-income.{part}",
        url=f"{_ADDRESS}census-income.{part}.gz",
        file=f"census-income.{part}.gz",
        md5=_MD5[part],
        variable="MTL_CENSUS",
        call="load_census",
        missing=CensusUnavailable,
        damaged=BadCensusFile,
    )


def _given(path: str | os.PathLike | None) -> dict[str, Path]:
    """The files at the reader's own path; empty if none was named."""
    said = "" if path else " (from the environment variable MTL_CENSUS)"
    named = path or os.environ.get("MTL_CENSUS")
    if not named:
        return {}
    if is_url(named):
        raise CensusUnavailable(f"{named}{said} is an address: expected the path of a file or a folder.")
    where = Path(named).expanduser()
    if where.is_dir():
        found = {
            part: file
            for part in _ROWS
            for ending in ("", ".gz")
            if (file := where / f"census-income.{part}{ending}").is_file()
        }
        if not found:
            raise CensusUnavailable(
                f"{where}{said} holds neither census-income.data nor census-income.test, with or without .gz.\n"
                f"{_source('test').ways()}"
            )
        return found
    if not where.is_file():
        raise CensusUnavailable(f"{where}{said} does not exist.\n{_source('test').ways()}")
    return {"data" if ".data" in where.name else "test": where}


def _read(file: Path) -> pd.DataFrame:
    again = "Expected the publisher's file as downloaded."
    numbers = dict.fromkeys(CENSUS_NUMERIC, "float32")
    texts = dict.fromkeys((*CENSUS_CATEGORICAL, "marital_stat", "income"), "category")
    try:
        table = pd.read_csv(
            file,
            header=None,
            names=_COLUMNS,
            index_col=False,
            dtype=numbers | texts,
            usecols=[name for name in _COLUMNS if name != "instance_weight"],
            skipinitialspace=True,
            keep_default_na=False,  # hispanic_origin has an answer "NA"
            na_values="?",
            encoding="utf-8",
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError, EOFError, OSError) as error:
        raise BadCensusFile(f"{file} cannot be read as Census-Income ({error}). {again}") from error
    if table.empty:
        raise BadCensusFile(f"{file} is empty. {again}")
    incomes = table["income"].astype(object).map(_INCOMES)
    if incomes.isna().any():
        row = int(np.flatnonzero(incomes.isna())[0])
        raise BadCensusFile(
            f"{file}, line {row + 1}: the last column is {str(table['income'].iloc[row])!r}, expected '- 50000.' or "
            f"'50000+.'. {again}"
        )
    if table[list(CENSUS_NUMERIC)].isna().any(axis=None) or table["marital_stat"].isna().any():
        raise BadCensusFile(f"{file} lacks a number or a marital status that every row has. {again}")
    table["income"] = incomes.astype("int8")
    table["never_married"] = (table.pop("marital_stat") == "Never married").astype("int8")
    for name in _DOLLARS:
        table[name] = np.log1p(table[name])
    return table
