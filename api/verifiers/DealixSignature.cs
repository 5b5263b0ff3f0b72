using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Security.Cryptography;
using System.Text;

/// <summary>Verifies webhooks of Dealix. .NET Core 3.1, .NET 5 or newer, nothing else.</summary>
public static class DealixSignature
{
    private const long ToleranceS = 300;

    /// <summary>Throws CryptographicException unless a request is genuine and at most five minutes old.</summary>
    /// <param name="body">The raw bytes, before anything parses them.</param>
    /// <param name="signature">The header Dealix-Signature, null where it is missing.</param>
    /// <param name="secret">All of it, whsec_ included.</param>
    public static void Verify(byte[] body, string signature, string secret)
    {
        if (string.IsNullOrEmpty(secret))
        {
            throw new CryptographicException("no secret is configured");
        }
        var t = "";
        var candidates = new List<string>();
        foreach (var part in (signature ?? "").Split(','))
        {
            var field = part.Trim().Split(new[] { '=' }, 2);
            var value = field.Length == 2 ? field[1] : "";
            if (field[0] == "t" && t == "")
            {
                t = value;
            }
            else if (field[0] == "v1")
            {
                candidates.Add(value);
            }
        }
        long sent;
        if (!long.TryParse(t, NumberStyles.None, CultureInfo.InvariantCulture, out sent)
            || Math.Abs(DateTimeOffset.UtcNow.ToUnixTimeSeconds() - sent) > ToleranceS)
        {
            throw new CryptographicException("the signature's time is missing or more than five minutes away");
        }
        using (var hmac = new HMACSHA256(Encoding.UTF8.GetBytes(secret)))
        {
            var digest = hmac.ComputeHash(Encoding.UTF8.GetBytes(t + ".").Concat(body).ToArray());
            var expected = Encoding.UTF8.GetBytes(BitConverter.ToString(digest).Replace("-", "").ToLowerInvariant());
            // While a secret is being rotated there are two v1: one that fits is enough.
            if (!candidates.Any(it => CryptographicOperations.FixedTimeEquals(Encoding.UTF8.GetBytes(it), expected)))
            {
                throw new CryptographicException("no signature fits");
            }
        }
    }
}
