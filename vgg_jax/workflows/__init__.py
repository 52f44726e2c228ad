"""One function a command: options in, result out."""
