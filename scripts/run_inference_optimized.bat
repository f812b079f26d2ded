@echo off
rem MuseTalk's own inference script, unmodified, with its faces restored.
rem
rem   run_inference_optimized.bat v1 or v1.5, normal or realtime, [arguments of MuseTalk's script, or --gfpgan_...]
rem
rem   cd C:\MuseTalk
rem   C:\path\to\run_inference_optimized.bat v1.5 normal --ffmpeg_path C:\ffmpeg\bin
rem
rem What you give comes last and wins, over the flags below too; paths are relative to MuseTalk's folder. In a YAML
rem section gfpgan: everything counts but the flags below: give those here (--gfpgan_region mouth).
rem
rem MUSETALK_DIR  MuseTalk's folder; the current one where it is not set
rem PYTHON        the python of MuseTalk's environment, with musetalk_enhance installed; python where it is not set
rem FFMPEG_PATH   the folder of ffmpeg, handed on as --ffmpeg_path
rem CUDA_VISIBLE_DEVICES, MUSETALK_ENHANCE_CACHE and all others reach both as they are.
setlocal EnableExtensions DisableDelayedExpansion

rem The first two words are taken off the whole line: shift would not change it, and the rest keeps its quotes so.
set REST=%*
set "HERE=%~dp0.."
if "%~1"=="v1" goto v1
if "%~1"=="v1.0" goto v1_0
if "%~1"=="v1.5" goto v1_5
if "%~1"=="v15" goto v15
goto usage

:v1
set REST=%REST:*v1=%
goto model_v1
:v1_0
set REST=%REST:*v1.0=%
:model_v1
set MODEL=--version v1 --unet_model_path models/musetalk/pytorch_model.bin --unet_config models/musetalk/musetalk.json
goto mode
:v1_5
set REST=%REST:*v1.5=%
goto model_v15
:v15
set REST=%REST:*v15=%
:model_v15
set MODEL=--version v15 --unet_model_path models/musetalkV15/unet.pth --unet_config models/musetalkV15/musetalk.json

:mode
if "%~2"=="normal" goto normal
if "%~2"=="realtime" goto realtime
goto usage
:normal
set REST=%REST:*normal=%
set SCRIPT=scripts/inference.py
set TASK=--inference_config configs/inference/test.yaml --result_dir results/test
goto ready
:realtime
set REST=%REST:*realtime=%
set SCRIPT=scripts/realtime_inference.py
set TASK=--inference_config configs/inference/realtime.yaml --result_dir results/realtime

:ready
rem Why these: see run_inference_optimized.sh beside this file; they are the same.
set OURS=--enable_gfpgan --gfpgan_region lower --gfpgan_output_size native --gfpgan_mode memory --gfpgan_on_error passthrough
set FFMPEG=
if defined FFMPEG_PATH set FFMPEG=--ffmpeg_path "%FFMPEG_PATH%"
if not defined MUSETALK_DIR set "MUSETALK_DIR=%CD%"
if not defined PYTHON set "PYTHON=python"

pushd "%MUSETALK_DIR%" 2>nul || goto no_folder
if not exist "%SCRIPT%" goto no_script
"%PYTHON%" --version >nul 2>&1 || goto no_python
"%PYTHON%" -c "import musetalk_enhance" >nul 2>&1 || goto no_enhance

"%PYTHON%" -m musetalk_enhance run %SCRIPT% %OURS% %MODEL% %TASK% %FFMPEG% %REST%
set CODE=%errorlevel%
popd
exit /b %CODE%

:usage
>&2 echo usage: run_inference_optimized.bat v1^|v1.5 normal^|realtime [arguments of MuseTalk's script, or --gfpgan_...]
exit /b 2
:no_folder
>&2 echo run_inference_optimized.bat: MUSETALK_DIR="%MUSETALK_DIR%" is no folder
exit /b 2
:no_script
>&2 echo run_inference_optimized.bat: no %SCRIPT% in "%CD%"; go to MuseTalk's folder, or set MUSETALK_DIR
popd
exit /b 2
:no_python
>&2 echo run_inference_optimized.bat: "%PYTHON%" cannot be run; set PYTHON to that of MuseTalk's environment
popd
exit /b 2
:no_enhance
>&2 echo run_inference_optimized.bat: "%PYTHON%" has no musetalk_enhance; install it: "%PYTHON%" -m pip install "%HERE%"
popd
exit /b 2
