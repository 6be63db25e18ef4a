"""python ml_server.py MODEL FOLDER PORT: lay out the same pipeline for MLServer's scikit-learn runtime, which reads joblib."""

import json
import sys
from pathlib import Path

import joblib

from evergreen.tasks.model_files import skops_models

model, folder, port = sys.argv[1:]
joblib.dump(skops_models.load(Path(model)), Path(folder) / "model.joblib")
settings = {"host": "127.0.0.1", "http_port": int(port), "grpc_port": int(port) + 1, "metrics_port": int(port) + 2}
(Path(folder) / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0}))
about = {"name": "model", "implementation": "mlserver_sklearn.SKLearnModel", "parameters": {"uri": "./model.joblib"}}
(Path(folder) / "model-settings.json").write_text(json.dumps(about))
