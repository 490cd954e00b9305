"""A run handed on to a tracker after training: records of it and of its trials, and one small file a tracker."""
