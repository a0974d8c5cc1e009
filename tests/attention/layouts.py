"""Attention by hand with the axes of its pattern in every order that people write, each on (batch, heads, positions, d_head)."""

import torch

from tests.attention.test_hand_written import scores_of


def bshk(query, key, value):
    pattern = scores_of(query, key).permute(0, 2, 1, 3).softmax(-1)
    return torch.einsum("bshk,bhkd->bhsd", pattern, value)


def ijbh(query, key, value):
    pattern = scores_of(query, key).permute(2, 3, 0, 1).softmax(1)
    return torch.einsum("ijbh,bhjd->bhid", pattern, value)


def btsh(query, key, value):
    pattern = torch.softmax(scores_of(query, key).permute(0, 2, 3, 1), dim=2)
    return torch.einsum("btsh,bhsd->bhtd", pattern, value)


def hbij(query, key, value):
    pattern = scores_of(query, key).transpose(0, 1).softmax(-1)
    return (pattern @ value.transpose(0, 1)).transpose(0, 1)


def ibhj(query, key, value):
    pattern = scores_of(query, key).permute(2, 0, 1, 3).softmax(-1)
    return torch.einsum("ibhj,bhjd->bhid", pattern, value)


def jibh(query, key, value):
    pattern = scores_of(query, key).permute(3, 2, 0, 1).softmax(0)
    return torch.einsum("jibh,jbhd->bhid", pattern, value.permute(2, 0, 1, 3))


def heads_before_rows(query, key, value):
    pattern = scores_of(query, key).transpose(0, 1).flatten(0, 1).softmax(-1)
    found = torch.bmm(pattern, value.transpose(0, 1).flatten(0, 1))
    return found.unflatten(0, (query.shape[1], -1)).transpose(0, 1)


def rows_and_heads_last(query, key, value):
    pattern = scores_of(query, key).flatten(0, 1).permute(1, 2, 0).softmax(1)
    return torch.einsum("ijn,njd->nid", pattern, value.flatten(0, 1)).unflatten(0, (-1, query.shape[1]))


def heads_and_rows_last(query, key, value):
    pattern = scores_of(query, key).transpose(0, 1).flatten(0, 1).permute(1, 2, 0).softmax(1)
    found = torch.einsum("ijn,njd->nid", pattern, value.transpose(0, 1).flatten(0, 1))
    return found.unflatten(0, (query.shape[1], -1)).transpose(0, 1)


def all_but_keys_folded(query, key, value):
    scores = scores_of(query, key)
    return scores.reshape(-1, scores.shape[-1]).softmax(-1).view_as(scores) @ value


def queries_before_rows_folded(query, key, value):
    scores = scores_of(query, key).permute(2, 0, 1, 3)
    pattern = scores.reshape(-1, scores.shape[-1]).softmax(-1).view(scores.shape)
    return torch.einsum("ibhj,bhjd->bhid", pattern, value)


def keys_before_queries(query, key, value):
    return (value.mT @ scores_of(query, key).mT.softmax(-2)).mT


def in_groups(query, key, value):
    """Both heads in a group of their own, with an axis for it."""
    scores = scores_of(query, key).unflatten(1, (-1, 1)).permute(0, 3, 1, 2, 4)
    return torch.einsum("bigrj,bgjd->bgrid", scores.softmax(-1), value).flatten(1, 2)


def summed(query, key, value):
    """Number by number, and then a sum over keys."""
    return (scores_of(query, key).softmax(-1)[..., None] * value[:, :, None]).sum(-2)


def summed_with_heads_last(query, key, value):
    pattern = scores_of(query, key).permute(0, 2, 3, 1).softmax(2)
    return (value.transpose(1, 2)[:, None] * pattern[..., None]).sum(dim=2).transpose(1, 2)


LAYOUTS = [bshk, ijbh, btsh, hbij, ibhj, jibh, heads_before_rows, rows_and_heads_last, heads_and_rows_last]
LAYOUTS += [all_but_keys_folded, queries_before_rows_folded, keys_before_queries, in_groups]
SUMS = [summed, summed_with_heads_last]
