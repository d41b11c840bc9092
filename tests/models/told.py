"""Collects the progress that a pull tells."""

from mofang.messages import Progress


class Told(list[Progress]):
    """Collects progress; `stages` are its stages in order, without repeats."""

    def __call__(self, progress: Progress) -> None:
        self.append(progress)

    @property
    def stages(self) -> list[str]:
        found: list[str] = []
        for progress in self:
            if not found or found[-1] != progress.stage:
                found.append(progress.stage)
        return found
