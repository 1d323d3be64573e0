@echo off
rem run.bat              set up .venv, then train, evaluate and export on the drawn sample data
rem run.bat test ...     set up .venv with the test tools, then run all tests, or pytest ...
rem run.bat MODULE ...   set up .venv, then python -m fmd_tf.MODULE ... (for example train)
setlocal
set "root=%~dp0"
set "python=%root%.venv\Scripts\python.exe"
set "extra="
if "%~1"=="test" set "extra=[dev]"
if not exist "%python%" (
    echo Setting up %root%.venv, a few minutes the first time
    for %%v in (3.13 3.12 3.11) do if not exist "%python%" py -%%v -m venv "%root%.venv" 2>nul
    if not exist "%python%" (
        echo run.bat: expected Python 3.11, 3.12 or 3.13; install one from python.org 1>&2
        exit /b 1
    )
)
fc /b "%root%pyproject.toml" "%root%.venv\installed%extra%" >nul 2>&1 || (
    "%python%" -m pip install --quiet --disable-pip-version-check --editable "%root%.%extra%" || exit /b 1
    copy /y "%root%pyproject.toml" "%root%.venv\installed%extra%" >nul
)
set "module=%~1"
set "rest="
:collect
shift
if "%~1"=="" goto run
set "rest=%rest% %1"
goto collect
:run
if "%module%"=="" goto sample
if "%module%"=="test" goto test
"%python%" -m fmd_tf.%module%%rest%
exit /b %errorlevel%
:sample
cd /d "%root%"
"%python%" -m fmd_tf.train --sample --weights centerface --image-size 75 --epochs 10 --checkpoint-dir checkpoints\sample --results-dir results\sample --export-dir savedmodel\sample
exit /b %errorlevel%
:test
cd /d "%root%"
"%python%" -m ruff check . || exit /b 1
"%python%" -m ruff format --check . || exit /b 1
"%python%" -m mypy || exit /b 1
"%python%" -m pytest -n logical --maxprocesses 4 --dist worksteal%rest%
exit /b %errorlevel%
