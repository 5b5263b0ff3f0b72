<?php

// Verifies webhooks of Dealix. PHP 8.0 or newer, nothing else.

const DEALIX_TOLERANCE_S = 300;

/**
 * The event in a request. Throws UnexpectedValueException unless it is genuine and at most five minutes old.
 *
 * $body: the raw bytes, file_get_contents('php://input'). $signature: $_SERVER['HTTP_DEALIX_SIGNATURE'] ?? ''.
 * $secret: all of it, whsec_ included.
 */
function dealix_verify(string $body, string $signature, string $secret): array
{
    if ($secret === '') {
        throw new UnexpectedValueException('no secret is configured');
    }
    $t = '';
    $candidates = [];
    foreach (explode(',', $signature) as $part) {
        [$name, $value] = explode('=', trim($part), 2) + [1 => ''];
        if ($name === 't' && $t === '') {
            $t = $value;
        } elseif ($name === 'v1') {
            $candidates[] = $value;
        }
    }
    if (!preg_match('/^[0-9]+$/D', $t) || abs(time() - (int) $t) > DEALIX_TOLERANCE_S) {
        throw new UnexpectedValueException("the signature's time is missing or more than five minutes away");
    }
    $expected = hash_hmac('sha256', $t . '.' . $body, $secret);
    // While a secret is being rotated there are two v1: one that fits is enough.
    foreach ($candidates as $candidate) {
        if (hash_equals($expected, $candidate)) {
            return json_decode($body, true, 512, JSON_THROW_ON_ERROR);
        }
    }
    throw new UnexpectedValueException('no signature fits');
}
