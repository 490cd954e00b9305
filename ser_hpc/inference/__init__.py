"""Use what was trained: predict, ship, and say how sure it is. `ser_hpc.load(MODEL_OR_RUN).predict(recordings)`.

load         a run or an exported folder -> a Predictor
trials       the models of a run's finished trials, whose classes and temperatures come from the run itself
ensemble     several classifiers as one module: it computes in `predict`, and in transformers' pipeline
calibration  one temperature a trial, fitted to its saved dev predictions
predictor    recordings -> packed batches -> predictions, in bounded memory
recordings   what is given to predict: files, folders, tables, shards, arrays; windows cuts them
writers      a table for people; JSON lines, CSV and Parquet for programs
export       writes a model folder, folder reads one, card describes it; register makes it known to transformers
adapter_folder           writes and reads LoRA as PEFT does; initial: trained weights for another trial to start from

It knows nothing of how a model was trained.
"""
