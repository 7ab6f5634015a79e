"""The vectors of texts by OpenAI's own client: which of them are alike?

    pip install openai
    python examples/openai_client.py "title is Heat; genres is Crime" "title is Ronin"

A text stands where the attributes of an item stand (`title is …; genres is …`), and has the vector
that the item would have. Any software that speaks to OpenAI works the same way: its base URL is the
service's with /v1.
"""

import argparse
import math
import sys

from openai import OpenAI, OpenAIError

TEXTS = [
    "title is Toy Story; release year is 1995; genres is Animation, Children's, Comedy",
    "title is Aladdin; release year is 1992; genres is Animation, Children's, Comedy, Musical",
    "title is Heat; release year is 1995; genres is Action, Crime, Thriller",
]


def cosine(left: list[float], right: list[float]) -> float:
    """How alike two vectors are."""
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return product / (math.hypot(*left) * math.hypot(*right))


def main() -> None:
    """Ask for the vectors, and print how alike each two of them are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("texts", nargs="*", default=TEXTS)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", default="none", help="an API key, where the service has them")
    parser.add_argument("--model", help="of GET /v1/models; without it the first")
    arguments = parser.parse_args()
    try:
        with OpenAI(base_url=f"{arguments.url}/v1", api_key=arguments.key) as client:
            model = arguments.model or client.models.list().data[0].id
            answer = client.embeddings.create(model=model, input=arguments.texts)
    except OpenAIError as error:
        sys.exit(f"{arguments.url}: {error}")
    vectors = [each.embedding for each in answer.data]
    print(f"{model}: {len(vectors)} vectors of {len(vectors[0])} numbers, {answer.usage}")
    for row, text in enumerate(arguments.texts):
        alike = "  ".join(f"{cosine(vectors[row], other):6.3f}" for other in vectors)
        print(f"{alike}  {text}")


if __name__ == "__main__":
    main()
