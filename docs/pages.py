"""Pictures of Prefect's and MLflow's pages, for the documents: `python -m docs.pages`.

Needs Chromium and the store of a finished quickstart; serves it, runs it once more from its deployment, and looks.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tasks.tracking.client import TRAINING_PAGES
from tests.serving import Served, ended, logged_in, serving

FOLDER = Path(__file__).parent / "figures"
SIZE = {"width": 1200, "height": 760}
COLOURS = 64
DRAWN = 6000.0
"""Milliseconds for a page to have drawn its charts."""


def prefect_pages(served: Served, store: str) -> dict[str, str]:
    """Addresses of the deployments, of one's form, and of a run of it, which is waited for."""
    with served.client() as client:
        deployment = client.read_deployment_by_name("distill/quickstart").id
        parameters = {"overrides": [f"runtime.store={store}"]}
        run = client.create_flow_run_from_deployment(deployment, parameters=parameters).id
        assert ended(client, run) == "Completed"
    return {
        "deployments": f"{served.prefect}/deployments",
        "form": f"{served.prefect}/deployments/deployment/{deployment}/run",
        "run": f"{served.prefect}/runs/flow-run/{run}",
    }


def curves_page(served: Served) -> str:
    """Address of the curves of the newest training of MiniLLM."""
    with served.tracked() as client:
        experiment = client.get_experiment_by_name("quickstart")
        assert experiment is not None
        query = "tags.stage = 'train' AND tags.cached = 'false' AND params.role = 'minillm'"
        training = client.search_runs([experiment.experiment_id], query)[0].info.run_id
    place = f"experiments/{experiment.experiment_id}/runs/{training}/model-metrics"
    return f"{served.mlflow}/#/{place}?{TRAINING_PAGES}"


def take(page: Page, name: str, address: str) -> None:
    """Keep what a page shows, in few colours."""
    page.goto(address)
    page.wait_for_timeout(DRAWN)
    if (assistant := page.get_by_role("button", name="Close")).count():
        assistant.first.click()
        page.wait_for_timeout(DRAWN)
    if name == "curves":
        page.mouse.move(600, 500)
        page.mouse.wheel(0, 430)  # past what it ended with
        page.wait_for_timeout(DRAWN)
    with tempfile.NamedTemporaryFile(suffix=".png") as taken:
        page.screenshot(path=taken.name)
        picture = Image.open(taken.name).convert("RGB").quantize(COLOURS)
        picture.save(FOLDER / f"page-{name}.png", optimize=True)
    print(FOLDER / f"page-{name}.png")


def main() -> None:
    """Write figures/page-*.png."""
    parser = argparse.ArgumentParser(prog="python -m docs.pages", description="Pictures of the pages.")
    parser.add_argument("--store", default=".minillm", help="of a finished quickstart (default: %(default)s)")
    store = str(Path(parser.parse_args().store).resolve())
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        (Path(folder) / "store").symlink_to(store)
        with serving(Path(folder)) as served:
            pages = prefect_pages(served, store) | {"curves": curves_page(served)}
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
            page = logged_in(browser, served, viewport=SIZE)
            for name, address in pages.items():
                take(page, name, address)
            expect(page.get_by_text("train minillm").first).to_be_visible()


if __name__ == "__main__":
    main()
